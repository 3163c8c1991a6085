#!/bin/sh
# typer 0.29.2 with rich 15.0.0: what zsh completes is shown with a description that went through rich as text for a terminal. It is broken into
# lines at the width of the terminal (80 where there is none, as in a completion), so that one entry of zsh's list becomes several lines; and what
# stands in square brackets is taken for markup and left out, such as "[red]", also where the app has rich_markup_mode=None.
# bash is given names alone, and is right. Asking also imports rich, which a completion needs for nothing else.
# Seen: "lines of one entry: 2, its bracketed word: gone, bash: --number --name".
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q typer==0.29.2 rich==15.0.0
cat >"$folder/app.py" <<'PYTHON'
import typer

app = typer.Typer(rich_markup_mode=None)
LONG = "how many of them there are to be, counted from the first one that was ever seen in any of the files"


@app.command()
def main(
    number: int = typer.Option(1, "--number", help=LONG),
    name: str = typer.Option("", "--name", help="a colour, [red] or another"),
) -> None:
    pass


app(prog_name="app")
PYTHON
ask() {
    _APP_COMPLETE=complete_$1 _TYPER_COMPLETE_ARGS="app --n" COMP_WORDS="app --n" COMP_CWORD=1 "$folder/env/bin/python" "$folder/app.py"
}
entry=$(ask zsh | sed -n '/--number/,/--name/p' | sed '$d' | wc -l | tr -d ' ')
word=$(ask zsh | grep -q 'red' && echo kept || echo gone)
bash=$(ask bash | tr '\n' ' ')
line="lines of one entry: $entry, its bracketed word: $word, bash: ${bash% }"
echo "$line"
[ "$line" = "lines of one entry: 2, its bracketed word: gone, bash: --number --name" ]
