"""Training of the embedded models: only their developers run what is in here, users get the weights."""
