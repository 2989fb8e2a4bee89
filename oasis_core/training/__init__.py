"""Training: degradations, data, losses and the loop (extra ``[train]``)."""
