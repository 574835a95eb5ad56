"""Keys in files: read when the program starts, and again whenever a file is another one.

A publisher renews its keys without asking us, and a block must not be restarted for that: the file is looked
at with every message, which costs a microsecond. A new content that cannot be read changes nothing and is
said: the keys known so far go on to count. At the start it is an error, since there are none to go on with.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Generic, TypeVar

import structlog

from controller.yaml_config import ConfigError
from protocols.dsx_flex import signing
from protocols.dsx_flex.wire import DsxFlexError

FILE_MAX_BYTES: Final = 1024 * 1024

K = TypeVar("K")

log = structlog.get_logger(__name__)


class KeyFile(Generic[K]):
    """What a file of keys holds now.

    Args:
        where: it is named in the configuration, for errors.
        path: of the file.
        read: makes keys of its content; raises DsxFlexError.

    Raises:
        ConfigError: there are no keys to begin with.
    """

    def __init__(self, where: str, path: Path, read: Callable[[bytes], K]) -> None:
        self._where, self._path, self._read = where, path, read
        self._seen = self._mark()
        self._keys = self._load()

    def current(self) -> K:
        seen = self._mark()
        if seen != self._seen:
            self._seen = seen
            try:
                self._keys = self._load()
                log.info("keys renewed", path=str(self._path))
            except ConfigError as error:
                log.error("keys not renewed, those known so far go on to count", why=str(error))
        return self._keys

    def _mark(self) -> tuple[int, int] | None:
        """What changes when the file does; None: it is not there."""
        try:
            stat = self._path.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size

    def _load(self) -> K:
        try:
            with self._path.open("rb") as file:
                content = file.read(FILE_MAX_BYTES)
            return self._read(content)
        except OSError as error:
            raise ConfigError(
                f"{self._where}: {self._path}: {error.strerror}; check path and permissions"
            ) from None
        except DsxFlexError as error:
            raise ConfigError(f"{self._where}: {self._path}: {error}") from None


def key_files(where: str, paths: Mapping[str, Path | None]) -> dict[str, KeyFile[signing.KeySet] | None]:
    """Public keys by publisher: a JWKS, or one PEM whose kid is the file's name. None: it does not sign."""
    return {
        name: None if path is None else KeyFile(f"{where}.{name}", path, _reader(path.stem))
        for name, path in paths.items()
    }


def _reader(kid: str) -> Callable[[bytes], signing.KeySet]:
    def read(content: bytes) -> signing.KeySet:
        if content.lstrip().startswith(b"{"):
            return signing.KeySet(signing.read_jwks(content))
        return signing.KeySet((signing.read_public_pem(kid, content),))

    return read


def signer_file(where: str, path: Path | None, kid: str | None) -> KeyFile[signing.Signer] | None:
    """Our own private key; None: nobody here signs."""
    if path is None or kid is None:
        return None
    return KeyFile(where, path, lambda content: signing.Signer(kid, content))
