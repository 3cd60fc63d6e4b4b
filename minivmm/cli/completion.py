"""`minivmm completion`: a script for the shell, and the answers that it asks for at each TAB.

What may come next is found in completing.py, so that all shells know the same.
"""

from __future__ import annotations

import argparse

from minivmm.cli.completing import FILES, Candidate, complete
from minivmm.errors import MinivmmError

_BASH = r"""
_minivmm() {
    local line text=${COMP_LINE:0:COMP_POINT}
    COMPREPLY=()
    compopt +o nospace
    while IFS=$'\t' read -r line _; do
        case $line in
            :files) compopt -o default; return ;;
            *=|*,) compopt -o nospace ;;
        esac
        COMPREPLY+=("$line")
    done < <(minivmm completion bash -- "$text" 2>/dev/null)
}
complete -F _minivmm minivmm
"""

_ZSH = r"""
#compdef minivmm
_minivmm() {
    local line text="${(j: :)words[1,CURRENT-1]} $PREFIX"
    local -a ended open ended_help open_help
    for line in "${(@f)$(minivmm completion zsh -- "$text" 2>/dev/null)}"; do
        [[ -n $line ]] || continue
        if [[ $line == :files* ]]; then
            _files
            return
        fi
        if [[ ${line%%$'\t'*} == *[=,] ]]; then
            open+=("${line%%$'\t'*}") open_help+=("${line/$'\t'/  -- }")
        else
            ended+=("${line%%$'\t'*}") ended_help+=("${line/$'\t'/  -- }")
        fi
    done
    compadd -l -d ended_help -a ended
    compadd -l -S '' -d open_help -a open
}
compdef _minivmm minivmm
"""

_FISH = r"""
function __minivmm_complete
    set -l found (minivmm completion fish -- (commandline -cp) 2>/dev/null)
    if string match -q ':files*' -- $found[1]
        __fish_complete_path (commandline -ct)
    else
        printf '%s\n' $found
    end
end
complete -c minivmm -f -a '(__minivmm_complete)'
"""

SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}

_HOW = {
    "bash": 'eval "$(minivmm completion bash)"',
    "zsh": 'eval "$(minivmm completion zsh)"',
    "fish": "minivmm completion fish | source",
}
"""Line that switches it on, for the shell's start-up file."""

_BASH_BREAKS = "=:"
"""Where bash ends words; it replaces only what follows."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.usage = "minivmm completion bash|zsh|fish"
    parser.epilog = "Add to your shell's start-up file: " + " or ".join(
        f"`{line}` ({shell})" for shell, line in _HOW.items()
    )
    parser.add_argument("shell", choices=SCRIPTS, help="the shell that the script is for")


def run(args: argparse.Namespace) -> int:
    """Print the script; or, after `--`, what could end the line given there, one a line."""
    if not args.command:
        print(SCRIPTS[args.shell].strip())
        return 0
    try:
        candidates = complete(args.command[0])
    except MinivmmError:  # a VM that is stuck, an option not understood: there is nothing to say
        candidates = []
    for candidate in candidates:
        print(_line(candidate, args.shell, args.command[0]))
    return 0


def _line(candidate: Candidate, shell: str, line: str) -> str:
    """As the scripts read it: the text, a tab, the help."""
    if candidate == FILES or shell != "bash":
        return f"{candidate.text}\t{candidate.help}".rstrip("\t")
    word = line.split(" ")[-1]
    broken = max(word.rfind(char) for char in _BASH_BREAKS) + 1
    return candidate.text[broken:]
