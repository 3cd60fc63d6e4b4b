"""What a trace file says about resizes: numbers, a page, figures. Nothing here talks to a VM."""
