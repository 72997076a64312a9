"""Explanations that the report shows below its tables and charts."""

from __future__ import annotations

TRAINED = "Mean over the clients of a round, weighted by their numbers of samples."
SKEW = (
    "The Gini index is 0 if all clients have equally many samples, and close to 1 if one client has nearly all. The "
    "label entropy of a client is 0 if all its samples are of one class; the more evenly it holds the classes, the "
    "higher it is. The label distance is the sum over the classes of |share at the client − share in all samples| "
    "(“EMD”): 0 if the shares are equal, at most 2."
)
