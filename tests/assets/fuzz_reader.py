"""Fuzz a reader with atheris, guided by the coverage of Deftly: `fuzz_reader.py FOLDER READER SECONDS`."""

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["deftly"]):
    import readers


def main() -> None:
    """Feed a reader with what atheris makes of its file, until the time is over or something is raised."""
    root, name, seconds = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    with atheris.instrument_imports(include=["deftly"]):
        make = next(make for make, names in readers.GROUPS.items() if name in names)
        reader = make(root)[name]
    corpus = root / "corpus"
    corpus.mkdir()
    (corpus / "whole").write_bytes(reader.whole)
    options = {
        "max_total_time": seconds,
        "max_len": 2 * len(reader.whole),
        "len_control": 0,
        "rss_limit_mb": 4096,
        "timeout": 60,
        "seed": 1,
        "verbosity": 0,
    }
    words = [f"-{option}={value}" for option, value in options.items()]

    def read(data: bytes) -> None:
        readers.attempt(reader, data)

    atheris.Setup([sys.argv[0], *words, str(corpus)], read)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
