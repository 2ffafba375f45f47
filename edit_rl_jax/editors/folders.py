"""Reads and writes the folder of an editor: networks as diffusers lays them, or in upstream's own files; and LoRAs.

Each editor's `weights.py` says in one `EditorFolder` what is its own.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from edit_rl_jax import sharding
from edit_rl_jax.editors import lora_files
from edit_rl_jax.nn import peft, weights
from edit_rl_jax.nn.model_files import checked, stored_metadata, verify
from edit_rl_jax.nn.params import LoRAConfig
from edit_rl_jax.nn.safetensors_io import WeightsError
from edit_rl_jax.nn.weights import Naming
from edit_rl_jax.vlm.qwen2_5_vl import weights as qwen
from edit_rl_jax.vlm.qwen2_5_vl.config import Config

STEM = "diffusion_pytorch_model"
TEXT = "text_tokens"
"""Entry of an export's `edit_rl.json`: tokens of a text, of an editor whose texts all have one length."""
FILES = ("*.json", "*.safetensors", "*.txt", "*.jinja")


@dataclasses.dataclass(frozen=True)
class EditorFolder:
    """Says what an editor's folder holds. One with rules of its own overrides `naming`, `of_single`, `beside`,
    `pipeline_of` or `on_mesh`.

    Attributes:
      editor: its class, called with the configurations, `rngs=` and options.
      configurations: the class of its networks' configurations, called with {network: configuration} and, with `text`,
        `text=`.
      networks: {name: (class of its configuration, what its tensors are called)}.
      classes, pipeline: of model_index.json. scheduler: of scheduler_config.json.
      targets: the option `targets` for the modules of an adapter; None where the editor has no such option.
      text: (a text's tokens where no folder says it, the most that one may say); None where texts have any length.
      single: {network: pattern of upstream's own file of it, at the folder's top}. files: further ones that go along.
      patterns: of a hub id's files that are fetched.
      encoders: networks that read text, which `model.train_text` trains. tokenizers: folders of theirs, in the order of
        what `folder_tokenizer` gives.
      unshifted: of scheduler_config.json where an editor from scratch was not trained with a shift by size.
    """

    editor: Any
    configurations: Any
    networks: Mapping[str, tuple[Any, Naming]]
    classes: Mapping[str, Sequence[str]]
    pipeline: str
    scheduler: Mapping[str, Any]
    targets: Callable[[Iterable[str]], str] | None = None
    text: tuple[int, int] | None = None
    single: Mapping[str, str] = dataclasses.field(default_factory=dict)
    files: tuple[str, ...] = ()
    patterns: tuple[str, ...] = FILES
    encoders: tuple[str, ...] = ()
    tokenizers: tuple[str, ...] = ()
    unshifted: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def naming(self, part: str, state: Any) -> Naming:
        """Says what the tensors of a network's state are called in files that are read."""
        return self.networks[part][1]

    def of_single(self, part: str, file: Path) -> Any:
        """Gives the configuration of a network that lies there as upstream's own file alone: the released one."""
        return self.networks[part][0]()

    def beside(self, source: Any) -> dict[str, Any]:
        """Gives what the configurations hold besides the networks'. source: a folder (Path), or a mapping or JSON text
        of what its model_index.json says. Raises WeightsError."""
        return {}

    def pipeline_of(self, cfg: Any) -> str:
        """Gives the class of model_index.json."""
        return self.pipeline

    def on_mesh(self, mesh: Mesh) -> dict[str, Any]:
        """Gives the options of the editor that a mesh asks for."""
        return {}

    def to_json(self, cfg: Any) -> str:
        """Gives the networks' configurations as `model.config` takes them."""
        return json.dumps({part: getattr(cfg, part).to_hf() for part in self.networks})

    def save_tokenizer(self, tokenizer: Any, folder: Path) -> None:
        """Writes the tokenizer, or each of several, where the editor's files have it."""
        for name, one in zip(self.tokenizers, tokenizer if isinstance(tokenizer, tuple) else (tokenizer,), strict=True):
            one.save_pretrained(str(folder / name))

    def local_folder(self, path_or_hub_id: str | Path, revision: str | None = None) -> Path:
        """Finds a local folder, or the snapshot of a hub id: weights, configs and tokenizer files, no code."""
        return weights.local_folder(path_or_hub_id, revision, self.patterns)

    def configs(self, folder: Path, text: int | None = None) -> Any:
        """Reads the configurations of a folder. text: where texts have one length. Raises WeightsError."""
        found = {}
        for part, (cls, _) in self.networks.items():
            file = None if (folder / part / "config.json").exists() else self._single(folder, part)
            found[part] = cls.from_hf(folder / part) if file is None else self.of_single(part, file)
        found |= self.beside(Path(folder))
        if self.text is not None:
            found["text"] = self.text[0] if text is None else text
        try:
            return self.configurations(**found)
        except ValueError as e:
            raise WeightsError(f"{folder}/*/config.json do not fit together: {e}") from None

    def _single(self, folder: Path, part: str) -> Path | None:
        """Upstream's own file of a network, where there is one. Raises WeightsError where there are several."""
        found = sorted(folder.glob(self.single[part])) if part in self.single else []
        if len(found) > 1:
            raise WeightsError(f"{folder}: several of {self.single[part]}: {', '.join(f.name for f in found)}")
        return found[0] if found else None

    def _source(self, folder: Path, part: str, state: Any) -> tuple[Path, Naming]:
        """Where the weights of a network lie, and what they are called."""
        naming, file = self.naming(part, state), self._single(folder, part)
        if file is None or any((folder / part).glob(f"{naming.stem}*.safetensors*")):
            return folder / part, naming
        return folder, dataclasses.replace(naming, stem=file.stem)

    def load(self, folder: Path, abstract: Any, shardings: Any = None) -> nnx.State:
        """Loads every base weight of an editor from its folder.

        abstract: state of the editor, or the Trainable or Frozen part of one: of each of its networks it must hold all
        base weights or none. LoRA leaves come back as they are. shardings and errors: as in `nn.weights.load`.
        """
        out = {}
        for part, state in abstract.items():
            if all(path[-1] in weights.LORA for path in weights.flatten(state)[0]):
                out[part] = state
                continue
            home, naming = self._source(folder, part, state)
            out[part] = weights.load(home, state, naming, None if shardings is None else shardings[part])
        return nnx.State(out)

    def from_folder(
        self,
        path_or_hub_id: str | Path,
        *,
        revision: str | None = None,
        lora: str | Path | None = None,
        alpha: float | None = None,
        mesh: Mesh | None = None,
        **options: Any,
    ) -> Any:
        """Makes an editor with its weights, on one device or sharded over a mesh; `options` are the editor's.

        lora, alpha: a LoRA of the transformer and its alpha, see `lora_files.read`; without one there is no adapter. A
        text's length is the one that the adapter, or else the folder, was trained with. Raises WeightsError.
        """
        folder = self.local_folder(path_or_hub_id, revision)
        for home in (folder, lora):
            if home is not None:
                verify(home)
        cfg = self.configs(folder, self.text_length(folder, lora))
        adapter = None if lora is None else self.read_lora(lora, alpha)
        if adapter is not None:
            options["lora"] = LoRAConfig(rank=adapter.rank, alpha=adapter.alpha)
            options |= {"targets": self.targets(adapter.layers)} if self.targets else {}
        if mesh is not None:
            options = self.on_mesh(mesh) | options
        graphdef, state = nnx.split(nnx.eval_shape(lambda: self.editor(cfg, rngs=nnx.Rngs(0), **options)))
        places = None if mesh is None else sharding.shardings(state, mesh)
        state = self.load(folder, state, places)
        if adapter is not None:
            place = None if places is None else places["transformer"]
            state["transformer"] = lora_files.load(lora, state["transformer"], adapter, place)
        return nnx.merge(graphdef, state)

    def text_length(self, folder: Path, lora: str | Path | None = None) -> int | None:
        """Finds the tokens of a text with which an adapter (a folder, or a file of one) or else its base was trained;
        None where texts have any length. Raises WeightsError."""
        if self.text is None:
            return None
        usual, most = self.text
        adapter = [] if lora is None else [Path(lora) if Path(lora).is_dir() else Path(lora).parent]
        for home in (*adapter, folder):
            if TEXT in (stored := stored_metadata(home)):
                return checked(stored[TEXT], "int", f"{home}: {TEXT}", 1, most)
        return usual

    def read_lora(self, path: str | Path, alpha: float | None = None) -> peft.Adapter:
        """Reads the description of a LoRA of the transformer: see `lora_files.read`."""
        return lora_files.read(path, alpha, naming=self.networks["transformer"][1])

    def save_lora(self, state: Any, rank: int, alpha: float, folder: str | Path, base: str | None = None) -> Path:
        """Writes the LoRA leaves of a state of the transformer: see `lora_files.save`."""
        return lora_files.save(state, rank, alpha, folder, base, naming=self.networks["transformer"][1])

    def save(
        self,
        state: Any,
        cfg: Any,
        folder: str | Path,
        *,
        files_from: str | Path | None = None,
        parts: Sequence[str] | None = None,
        dtype: Any = None,
        scheduler: Mapping[str, Any] | None = None,
    ) -> Path:
        """Writes a folder in diffusers' layout; every process must call, the first one writes.

        state: base weights of the editor (`peft.merge` adapters first). files_from: a folder that gives everything
        else. parts: networks written from `state`; by default only the transformer where there is `files_from`, else
        all. scheduler: what differs from the released one's. Raises WeightsError.
        """
        folder, source = Path(folder), None if files_from is None else Path(files_from)
        parts = parts or (tuple(self.networks) if source is None else ("transformer",))
        if why := [n for p in parts if (n := self.networks[p][1].unwritten)]:
            raise WeightsError(f"{folder}: not written: {why[0]}")
        for part in parts:
            config, naming = getattr(cfg, part), self.networks[part][1]
            if isinstance(config, Config):
                qwen.save(state[part], config, folder / part, dtype=dtype, naming=naming)
            else:
                weights.save(state[part], config.to_hf(), folder / part, naming, dtype=dtype)
        if jax.process_index():
            return folder
        (folder / "scheduler").mkdir(parents=True, exist_ok=True)
        files = {"model_index.json": {"_class_name": self.pipeline_of(cfg), **self.classes}}
        files["scheduler/scheduler_config.json"] = {**self.scheduler, **(scheduler or {})}
        for name, content in files.items():
            (folder / name).write_text(json.dumps(content, indent=2) + "\n")
        if source is not None:
            for part in (p for p in self.classes if p not in parts and (source / p).is_dir()):
                shutil.copytree(source / part, folder / part, dirs_exist_ok=True)
            single = [f.name for part in self.single if part not in parts and (f := self._single(source, part))]
            for name in (*files, *self.files, *single):
                if (source / name).is_file():
                    (folder / name).parent.mkdir(exist_ok=True)
                    shutil.copyfile(source / name, folder / name)
        return folder
