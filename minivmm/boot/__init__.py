"""From a kernel image to the first guest instruction: images, CPU state, ACPI."""
