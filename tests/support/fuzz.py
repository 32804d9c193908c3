"""Fuzzes a decoder, guided by coverage: ``python tests/support/fuzz.py DECODER CORPUS [OPTION OF LIBFUZZER ...]``.

libFuzzer keeps variants that reach new branches of zmqrl in the directory CORPUS, and goes on from these.
"""

import logging
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["zmqrl"]):
    from support.decoders import DECODERS, corpus, survives


def main() -> None:
    program, name, kept, *options = sys.argv
    decoder, logger = DECODERS[name], logging.getLogger()
    logger.disabled = True
    for number, variant in enumerate(corpus(decoder)):
        Path(kept, f"seed-{number}").write_bytes(variant)
    # Fuzz ends the process, so this directory cannot be removed here. The caller sets TMPDIR to a directory of its own.
    place = Path(tempfile.mkdtemp())
    atheris.Setup([program, *options, kept], lambda variant: survives(decoder, variant, place))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
