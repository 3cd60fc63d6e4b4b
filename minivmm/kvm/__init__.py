"""The /dev/kvm binding: what <linux/kvm.h> says, and thin objects over its descriptors."""
