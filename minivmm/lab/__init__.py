"""Hardware virtualization in software, for hosts whose /dev/kvm cannot run stock kernels."""
