"""The guest's side: kernels, modules, initramfs, init, agent. Import as `minivmm.guest` only."""

if __name__ != "minivmm.guest":
    raise ImportError(f"import minivmm.guest, not {__name__}: a second copy of every class")
