"""Make convit_jax/data/sources/imagenet_classes.txt: the 1,000 classes of ImageNet by id and name.

    apt-get download wordnet-base && dpkg -x wordnet-base*.deb wordnet
    python scripts/make_imagenet_names.py wordnet/usr/share/wordnet/data.noun

ImageNet's class ids are offsets in WordNet 3.0's file of nouns, and its class names are the words
at these offsets. The ids and their order are those of TFDS.
"""

import argparse
import pathlib

from tensorflow_datasets.datasets.imagenet2012 import imagenet_common

_HEADER = """\
# ImageNet's 1,000 classes in the order of their labels: WordNet id, then the class's names.
# Made by scripts/make_imagenet_names.py. The names are WordNet's, under its licence:
#
# This software and database is being provided to you, the LICENSEE, by Princeton University
# under the following license.  By obtaining, using and/or copying this software and database,
# you agree that you have read, understood, and will comply with these terms and conditions:
# Permission to use, copy, modify and distribute this software and database and its
# documentation for any purpose and without fee or royalty is hereby granted, provided that
# you agree to comply with the following copyright notice and statements, including the
# disclaimer, and that the same appear on ALL copies of the software, database and
# documentation, including modifications that you make for internal use or for distribution.
# WordNet 3.0 Copyright 2006 by Princeton University.  All rights reserved.
# THIS SOFTWARE AND DATABASE IS PROVIDED "AS IS" AND PRINCETON UNIVERSITY MAKES NO
# REPRESENTATIONS OR WARRANTIES, EXPRESS OR IMPLIED.  BY WAY OF EXAMPLE, BUT NOT LIMITATION,
# PRINCETON UNIVERSITY MAKES NO REPRESENTATIONS OR WARRANTIES OF MERCHANTABILITY OR FITNESS
# FOR ANY PARTICULAR PURPOSE OR THAT THE USE OF THE LICENSED SOFTWARE, DATABASE OR
# DOCUMENTATION WILL NOT INFRINGE ANY THIRD PARTY PATENTS, COPYRIGHTS, TRADEMARKS OR OTHER
# RIGHTS.
# The name of Princeton University or Princeton may not be used in advertising or publicity
# pertaining to distribution of the software and/or database.  Title to copyright in this
# software, database and any associated documentation shall at all times remain with Princeton
# University and LICENSEE agrees to preserve same.
"""


def names_at(nouns: bytes, offset: int) -> list[str]:
    """Return the words of the synset at an offset of WordNet's data.noun, see wndb(5WN)."""
    fields = nouns[offset : nouns.index(b"\n", offset)].decode().split(" ")
    if int(fields[0]) != offset:
        raise ValueError(f"no synset begins at {offset}: is this WordNet 3.0's data.noun?")
    num_words = int(fields[3], 16)
    return [word.replace("_", " ") for word in fields[4 : 4 + 2 * num_words : 2]]


def main() -> None:
    """Read WordNet's file of nouns and write the list."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data_noun", type=pathlib.Path, help="WordNet 3.0's data.noun")
    nouns = parser.parse_args().data_noun.read_bytes()
    ids = pathlib.Path(imagenet_common.label_names_file()).read_text().split()
    lines = (f"{wnid}\t{', '.join(names_at(nouns, int(wnid[1:])))}\n" for wnid in ids)
    repository = pathlib.Path(__file__).parent.parent
    path = repository / "convit_jax/data/sources/imagenet_classes.txt"
    path.write_text(_HEADER + "".join(lines))


if __name__ == "__main__":
    main()
