"""The language side: text and scores. It does not know that a model is being perturbed."""
