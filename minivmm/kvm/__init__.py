"""The /dev/kvm binding: numbers and structures as <linux/kvm.h> has them, and thin objects over the file descriptors."""
