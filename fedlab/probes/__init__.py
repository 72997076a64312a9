"""What the features of a trained network are worth: classifiers on top of them."""
