"""`deftly completion SHELL`: completion of the commands and their first words, made from the table of commands."""

from deftly.commands.table import COMMANDS, Words
from deftly.errors import DeftlyError

OFFERS: dict[Words, str] = {
    "tasks": "$(deftly tasks --names 2>/dev/null)",
    "robots": "$(deftly robots --names 2>/dev/null)",
    "shells": "bash zsh fish",
}
"""The words that a kind of first word offers, as bash writes them."""

BASH = """\
_deftly() {
    local words=""
    case "$COMP_CWORD ${COMP_WORDS[1]}" in
        "1 "*) words="COMMANDS --help --version" ;;
CASES
    esac
    COMPREPLY=($(compgen -W "$words" -- "${COMP_WORDS[COMP_CWORD]}"))
}
complete -o default -F _deftly deftly
"""
INTO = {
    "bash": '# Put this line into ~/.bashrc:  eval "$(deftly completion bash)"\n',
    "zsh": '# Put this line into ~/.zshrc, after compinit:  eval "$(deftly completion zsh)"\n'
    "autoload -Uz bashcompinit && bashcompinit\n",
    "fish": "# Put this line into ~/.config/fish/config.fish:  deftly completion fish | source\n",
}
"""Each shell, with how its script begins."""


def main(argv: list[str]) -> int:
    """Run `deftly completion`: print the completion script of a shell."""
    if argv[:1] in (["-h"], ["--help"]):
        print("usage: deftly completion bash|zsh|fish")
    elif len(argv) == 1 and argv[0] in INTO:
        print(script(argv[0]), end="")
    else:
        raise DeftlyError(
            f"completion needs one shell of {', '.join(INTO)}: deftly completion bash"
        )
    return 0


def script(shell: str) -> str:
    """The completion script of a shell."""
    return INTO[shell] + (_fish() if shell == "fish" else _bash())


def _by_words(words: Words) -> list[str]:
    """The commands whose first word is of this kind."""
    return [command.name for command in COMMANDS.values() if command.words == words]


def _bash() -> str:
    cases = []
    for words, offer in OFFERS.items():
        pattern = "|".join(f'"2 {name}"' for name in _by_words(words))
        cases.append(f'        {pattern}) words="{offer}" ;;')
    return BASH.replace("COMMANDS", " ".join(COMMANDS)).replace("CASES", "\n".join(cases))


def _fish() -> str:
    lines = [
        "set -l first '__fish_is_nth_token 1'",
        "set -l second '__fish_is_nth_token 2; and __fish_seen_subcommand_from'",
        f"complete -c deftly -n $first -f -a '{' '.join(COMMANDS)} --help --version'",
    ]
    for words, offer in OFFERS.items():
        names = " ".join(_by_words(words))
        lines.append(f"complete -c deftly -n \"$second {names}\" -f -a '{offer.removeprefix('$')}'")
    return "\n".join(lines) + "\n"
