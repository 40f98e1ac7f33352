"""What adarec_fast is measured against: the same mathematics in plain PyTorch."""
