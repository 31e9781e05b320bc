"""The same targets led by coverage of our own code, where atheris is installed: ``python -m fuzz.guided TARGET``.

Options behind the target are libFuzzer's: ``-runs=100000``, ``-max_len=4096``, ``-seed=1``. It ends at the first
finding, and writes it to ``crash-...``. What native libraries do inside is not seen, so this suits what is written in
Python: headers, lists, results, manifests, graphs before the runtime.
"""

import sys
import tempfile
from pathlib import Path


def main() -> None:
    import atheris

    name, options = sys.argv[1], sys.argv[2:]
    with atheris.instrument_imports(include=["inspectad"]):
        from fuzz.targets import TARGETS

        target = TARGETS[name]
        seeds = target.seeds()
        target.run(seeds[0])  # imports what it needs, to be instrumented as well
    with tempfile.TemporaryDirectory() as folder:
        for number, data in enumerate(seeds):
            Path(folder, str(number)).write_bytes(data)
        words = Path(folder, "words.dict")
        escaped = ("".join(f"\\x{byte:02x}" for byte in word) for word in target.words() if word)
        words.write_text("".join(f'"{word}"\n' for word in escaped))
        atheris.Setup([sys.argv[0], f"-dict={words}", *options, folder], target.run)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
