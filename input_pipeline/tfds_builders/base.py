"""What the builders have in common: a reader of this project gives the records, `records.py` their features."""
import abc
import pathlib

import tensorflow_datasets as tfds
from absl import logging

from input_pipeline import records


class SourceBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A data set whose splits are sources (see `schema.py`), in the order of the source.

    A subclass has the attributes of every TFDS builder, and `DESCRIPTION`, `HOMEPAGE`, `CITATION`.
    """

    DESCRIPTION = HOMEPAGE = CITATION = ""

    @abc.abstractmethod
    def files(self, folder: pathlib.Path) -> dict:
        """{split: path of its annotation file} below the folder of manual downloads; without the file, no split."""

    @abc.abstractmethod
    def source(self, folder: pathlib.Path, split: str):
        """The source that a split is made of."""

    def folder(self, dl_manager) -> pathlib.Path:
        """Where the annotation files and images are."""
        return pathlib.Path(dl_manager.manual_dir)

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, description=self.DESCRIPTION, features=records.features(),
                                     homepage=self.HOMEPAGE, citation=self.CITATION, disable_shuffling=True,
                                     metadata=tfds.core.MetadataDict())

    def _split_generators(self, dl_manager):
        folder = self.folder(dl_manager)
        files = self.files(folder)
        missing = {split: path for split, path in files.items() if not path.is_file()}
        if len(missing) == len(files):
            names = ", ".join(str(path.relative_to(folder)) for path in files.values())
            raise ValueError(f"{folder}: found none of {names}, expected at least one.\n"
                             f"{self.MANUAL_DOWNLOAD_INSTRUCTIONS}")
        for split, path in missing.items():
            logging.warning("%s: no file %s, so there will be no split %r", self.name, path, split)
        sources = {split: self.source(folder, split) for split in files if split not in missing}
        first, *others = ((split, records.description(source)) for split, source in sources.items())
        for split, told in others:
            if told != first[1]:
                raise ValueError(f"{folder}: found classes {told['class_names'][:10]} in {split!r} and "
                                 f"{first[1]['class_names'][:10]} in {first[0]!r}, expected the same with the same ids")
        self.info.metadata.update(first[1])
        return {split: self._generate_examples(source) for split, source in sources.items()}

    def _generate_examples(self, source):
        for index in range(len(source)):
            try:
                record, image, size = records.complete(source, index)
            except ValueError as error:
                raise ValueError(f"{source.name}, record {index}: {error}; `glipv2 inspect` lists every bad record"
                                 ) from error
            yield index, records.example(record, image, size, source.file_name(index))
