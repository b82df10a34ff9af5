"""Sources of texts without boxes: COCO captions, and VQA v2 questions with their answers."""
import os
import pathlib

import numpy as np

from input_pipeline import image_ops
from input_pipeline.annotations import Problems, checked_id, field, load_lists, missing_images, refuse

VQA_IMAGE = "COCO_{split}_{id:012d}.jpg"     # what the images of VQA v2 are called


class CocoCaptions:
    """A record for each caption of a COCO caption file, in the file's order; `image_id` is that of the image. `about` holds
    `references`, all captions of it.

    Args:
      json_path: file with `images` (`id`, `file_name`) and `annotations` (`image_id`, `caption`).
      image_folder: what `file_name` is relative to.
      name: of the source in errors and logs.
    Attributes:
      image_ids: int64 [records].
    Raises: ValueError listing the records at fault, and images that are not there.
    """

    class_names, category_ids = (), ()
    writes, names_boxes = True, False

    def __init__(self, json_path: str | os.PathLike, image_folder: str | os.PathLike, *, name: str | None = None):
        content = load_lists(json_path, ("images", "annotations"))
        self.name, self._folder = name or pathlib.Path(json_path).stem, pathlib.Path(image_folder)
        problems, self._files, self._sizes, found = Problems(), {}, {}, []
        for n, image in enumerate(content["images"]):
            with problems:
                image_id = field(image, "id", int, f"images[{n}]")
                self._files[image_id] = field(image, "file_name", str, f"images[{n}]")
                if type(image.get("height")) is int and type(image.get("width")) is int:
                    self._sizes[image_id] = image["height"], image["width"]
        for n, annotation in enumerate(content["annotations"]):
            with problems:
                where = f"annotations[{n}]"
                image_id = checked_id(annotation.get("image_id"), where)
                caption = field(annotation, "caption", str, where)
                if image_id not in self._files:
                    raise ValueError(f"{where}: found image_id {image_id}, expected the id of one of 'images'")
                if not caption.strip():
                    raise ValueError(f"{where}: found an empty caption")
                found.append((image_id, caption.strip()))
        if not found and not problems.found:
            problems.found.append("found no caption, expected at least one")
        missing = missing_images({image_id: self._folder / self._files[image_id] for image_id, _ in found})
        refuse(json_path, [*problems.found, *missing.values()])
        found = [(image_id, caption) for image_id, caption in found if image_id not in missing]
        self._ids, self._captions = [image_id for image_id, _ in found], [caption for _, caption in found]
        self.image_ids, self._of_image = np.array(self._ids, np.int64), {}
        for image_id, caption in zip(self._ids, self._captions):
            self._of_image.setdefault(image_id, []).append(caption)

    def __len__(self) -> int:
        return len(self._ids)

    def image_size(self, index: int) -> tuple[int, int]:
        """(height, width) as the file states, else from the image's header."""
        image_id = self._ids[index]
        return self._sizes.get(image_id) or image_ops.header_size(self._folder / self._files[image_id])

    def caption(self, index: int) -> str:
        """The caption alone."""
        return self._captions[index]

    def file_name(self, index: int) -> str:
        """As the file has it."""
        return self._files[self._ids[index]]

    def image_bytes(self, index: int) -> bytes:
        """The image file as it is."""
        return image_ops.read_file(self._folder / self.file_name(index))

    def __getitem__(self, index: int) -> dict:
        image_id = self._ids[index]
        path = self._folder / self._files[image_id]
        return {"image": lambda: image_ops.decode(path), "image_id": image_id, "about": {"references": list(self._of_image[image_id])},
                } | without_boxes(self._captions[index])


class Vqa:
    """A record for each question of VQA v2, in the file's order. Its text is the question, `image_id` the id of it.

    `questions` of a record holds {"question", "answer": the most frequent one, "answers": all ten}; a file of questions
    alone (the test split) has answers "" and []. `about` holds the photograph's `image_id`.

    Args:
      json_path: v2_OpenEnded_mscoco_*_questions.json.
      image_folder: folder of the COCO images.
      annotations_path: v2_mscoco_*_annotations.json, or None.
      file_pattern: name of an image's file; {split} is the file's `data_subtype`, {id} the photograph's id.
      name: of the source in errors and logs.
    Raises: ValueError listing the questions at fault, such as one without words or annotation, and images that are not there.
    """

    class_names, category_ids = (), ()
    asks, names_boxes = True, False
    annotations_path: str | os.PathLike | None

    def __init__(self, json_path: str | os.PathLike, image_folder: str | os.PathLike, *,
                 annotations_path: str | os.PathLike | None = None,
                 file_pattern: str = VQA_IMAGE, name: str | None = None):
        content = load_lists(json_path, ("questions",))
        self.name, self._folder = name or pathlib.Path(json_path).stem, pathlib.Path(image_folder)
        self.annotations_path, answers, problems = annotations_path, {}, Problems()
        if annotations_path is not None:
            for n, annotation in enumerate(load_lists(annotations_path, ("annotations",))["annotations"]):
                with problems:
                    where = f"{pathlib.Path(annotations_path).name}, annotations[{n}]"
                    answers[field(annotation, "question_id", int, where)] = (
                        field(annotation, "multiple_choice_answer", str, where),
                        [field(answer, "answer", str, where) for answer in field(annotation, "answers", list, where)])
        self._questions = []
        for n, question in enumerate(content["questions"]):
            with problems:
                where = f"questions[{n}]"
                question_id = checked_id(field(question, "question_id", int, where), where)
                if annotations_path is not None and question_id not in answers:
                    raise ValueError(f"{where}: found no annotation of question {question_id}")
                text = field(question, "question", str, where)
                if not text.strip():
                    raise ValueError(f"{where}: found an empty question")
                self._questions.append((question_id, field(question, "image_id", int, where), text,
                                        *answers.get(question_id, ("", []))))
        if not self._questions and not problems.found:
            problems.found.append("found no question, expected at least one")
        split = content.get("data_subtype", "")
        self._file = lambda image_id: self._folder / file_pattern.format(split=split, id=image_id)
        try:
            missing = missing_images({image_id: self._file(image_id) for _, image_id, *_ in self._questions})
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(f"file_pattern: found {file_pattern!r}, expected a name with {{id}}, and perhaps {{split}}: "
                             f"{error}") from error
        refuse(json_path, [*problems.found, *missing.values()])
        self._questions = [question for question in self._questions if question[1] not in missing]

    def __len__(self) -> int:
        return len(self._questions)

    def image_size(self, index: int) -> tuple[int, int]:
        """(height, width) from the image's header."""
        return image_ops.header_size(self._file(self._questions[index][1]))

    def caption(self, index: int) -> str:
        """The question alone."""
        return self._questions[index][2]

    def questions(self, index: int) -> list[dict]:
        """`questions` of the record, without the image."""
        _, _, question, answer, answers = self._questions[index]
        return [{"question": question, "answer": answer, "answers": list(answers)}]

    def file_name(self, index: int) -> str:
        """The name that the pattern gives."""
        return self._file(self._questions[index][1]).name

    def image_bytes(self, index: int) -> bytes:
        """The image file as it is."""
        return image_ops.read_file(self._file(self._questions[index][1]))

    def __getitem__(self, index: int) -> dict:
        question_id, image_id, question, _, _ = self._questions[index]
        path = self._file(image_id)
        return {"image": lambda: image_ops.decode(path), "image_id": question_id, "about": {"image_id": image_id},
                "questions": self.questions(index)} | without_boxes(question)


def without_boxes(caption: str) -> dict:
    """The text of a record and its boxes: none."""
    return {"caption": caption, "spans": [], "boxes": np.zeros((0, 4), np.float32), "classes": np.zeros(0, np.int32)}
