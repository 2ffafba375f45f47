"""Finds what reads the folder of an editor, by the kind that `model.kind` and `--editor-kind` name."""

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from edit_rl_jax.editors.base import Editor
from edit_rl_jax.flow.schedules import Schedule
from edit_rl_jax.names import has_all, resolve

# The same names as in `training.interfaces.MODELS`, where what is trained stands. An editor from outside is one module,
# "my_pkg.mod", that has the members of both Protocols.
EDITORS = {
    "omnigen2": "edit_rl_jax.editors.omnigen2.weights",
    "flux_kontext": "edit_rl_jax.editors.flux_kontext.weights",
    "qwen_image_edit": "edit_rl_jax.editors.qwen_image_edit.weights",
    "step1x_edit": "edit_rl_jax.editors.step1x_edit.weights",
}


@runtime_checkable
class EditorFiles(Protocol):
    """The folder of an editor, as it is released and as training exports it."""

    def local_folder(self, name: str) -> Path:
        """Finds a folder, or the snapshot of a hub id. Raises OSError where there is none."""

    def from_folder(self, folder: Path, *, lora: Any = None, alpha: Any = None, mesh: Any = None, dtype: Any) -> Editor:
        """Loads the editor, on one device or over a mesh. lora, alpha: files of an adapter, and its alpha where they do
        not say it. Raises WeightsError, a line that names the file."""

    def folder_tokenizer(self, folder: Path) -> Any:
        """Loads what the editor's processor takes as its tokenizer."""

    def schedule(self, folder: Path, steps: int) -> Schedule:
        """Makes the schedule that the folder asks for, at that many steps."""


def editor_files(kind: str) -> EditorFiles:
    """Finds the files of a kind of editor. Raises ConfigError, with the nearest right name or what is missing."""
    return has_all(resolve(kind, EDITORS), EditorFiles, "model.kind", kind)
