"""The search side: numbers and tensors. It tunes any `nn.Module` and knows nothing of language."""
