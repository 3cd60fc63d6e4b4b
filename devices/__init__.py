"""Device models. Import as `minivmm.devices` only: the folder is reached through a link."""

if __name__ != "minivmm.devices":
    raise ImportError(f"import minivmm.devices, not {__name__}: a second copy of every class")
