"""Any module of PyTorch as a Network: cut into named units, run, kept, resumed."""
