"""Parts that several methods share and that know the hooks of a method: groups, steps and contexts."""
