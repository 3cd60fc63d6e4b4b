"""The version, as greetings, traces and `--version` tell it; pyproject.toml has it too."""

__version__ = "0.1.0"
