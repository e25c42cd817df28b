"""Finding a checkpoint's files: a directory, or a hub id that is downloaded once. Its code is never run."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from quire.errors import InvalidRequest, NotFound

# Never *.bin or *.pt: pickles run code when they are read.
_TOKENIZER_PATTERNS = ("*.json", "*.jinja", "*.model", "*.txt")
_WEIGHT_PATTERNS = ("*.safetensors",)


def resolve_model(source: str, *, revision: str | None = None, weights: bool = True) -> Path:
    """The local directory of `source`: a directory itself, or a hub id, downloaded into the hub's cache.

    Raises NotFound for a path that is not there or a hub id that cannot be had; the message says which.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise NotFound(f"{path} holds no config.json: it is not a Hugging Face checkpoint", param="model")
        return path
    if path.exists() or source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise NotFound(f"no directory {source}, and not a hub id (owner/name) either", param="model")
    return _download(source, revision, _TOKENIZER_PATTERNS + (_WEIGHT_PATTERNS if weights else ()))


def _download(source: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=list(patterns)))
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
        hint = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
        raise NotFound(f"cannot get {source} from the hub{hint}: {error}", param="model") from error


def read_json(directory: Path, name: str) -> dict[str, Any]:
    """The object in `directory/name`. Raises NotFound if it is missing, InvalidRequest if it is no object."""
    path = directory / name
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFound(f"{path} is missing", param="model") from None
    except (ValueError, OSError) as error:
        raise InvalidRequest(f"{path} cannot be read: {error}", param="model") from None
    if not isinstance(document, dict):
        raise InvalidRequest(f"{path} must hold a JSON object", param="model")
    return document


def model_revision(directory: Path) -> str:
    """The hub's commit hash where `directory` is a snapshot of its cache, else a digest of the files.

    Part of every block hash: two checkpoints with one name must never share KV.
    """
    if directory.parent.name == "snapshots":
        return directory.name
    digest = hashlib.sha256((directory / "config.json").read_bytes())
    for path in sorted(directory.glob("*.safetensors")):
        stat = path.stat()
        digest.update(f"{path.name}:{stat.st_size}:{stat.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]
