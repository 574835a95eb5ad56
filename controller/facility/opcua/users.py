"""Users of the OPC UA server: a file of names, roles, and what proves them.

    users:
      - {name: scada-1, role: operate, password: "scrypt$16384$8$1$...$..."}
      - {name: jane, role: engineer, certificate: 3f2a...}      # SHA-256 of her certificate

`powerblock password` makes the hash. The file is looked at for every login and read again when it has
changed; a version that cannot be read lets nobody in and says why, for a half-written file must not be an
open door. It must not be readable by everybody.

A password is checked in 40 ms, as scrypt wants it; that is the price of each wrong one, and the server bounds
how many there are. A right one is remembered for the life of the process, so clients that reconnect all day
cost nothing. A name that does not exist takes as long as one that does.
"""

import base64
import hashlib
import hmac
import os
import secrets
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final, Literal

import structlog
from cryptography import x509
from pydantic import BaseModel, ConfigDict, Field, model_validator

from controller.image.model import Role
from controller.yaml_config import ConfigError, load
from protocols.opcua.server_access import Identity
from protocols.opcua.trust import complaint_of_dates

SCHEME: Final = "scrypt"
COST, BLOCK_SIZE, LANES = 2**14, 8, 1  # 16 MiB and 40 ms: RFC 7914, section 2
COST_MAX: Final = 2**17
SALT_BYTES, HASH_BYTES = 16, 32
MEMORY_MAX_BYTES: Final = 256 * 1024 * 1024
PASSWORD_MAX_CHARS: Final = 200
RIGHT_MAX: Final = 64  # logins remembered
USERS_MAX: Final = 200
ANONYMOUS: Final = "anonymous"

log = structlog.get_logger(__name__)


class User(BaseModel):
    """Somebody who may come in, by password or by certificate or by either."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: Annotated[str, Field(min_length=1, max_length=80)]
    role: Literal["observe", "operate", "engineer"]
    password: str | None = None
    certificate: Annotated[str, Field(pattern=r"^[0-9a-fA-F:]{64,95}$")] | None = None

    @model_validator(mode="after")
    def _provable(self) -> "User":
        if self.password is None and self.certificate is None:
            raise ValueError("needs a password (`powerblock password` makes it) or a certificate's SHA-256")
        if self.password is not None and _parts(self.password) is None:
            raise ValueError("password: is no hash; make one with `powerblock password`")
        return self

    @property
    def identity(self) -> Identity:
        return Identity(self.name, int(Role[self.role.upper()]))


class UserFile(BaseModel):
    """A file of users."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    users: Annotated[tuple[User, ...], Field(max_length=USERS_MAX)]

    @model_validator(mode="after")
    def _once(self) -> "UserFile":
        names = [user.name for user in self.users]
        twice = sorted({name for name in names if names.count(name) > 1 or name == ANONYMOUS})
        if twice:
            raise ValueError(f"{', '.join(twice)}: given twice, or not to be had; rename")
        return self


def hashed(password: str) -> str:
    """What to write into the file for this password. Raises ValueError for none, or a very long one."""
    if not 0 < len(password) <= PASSWORD_MAX_CHARS:
        raise ValueError(f"a password has 1 to {PASSWORD_MAX_CHARS} characters")
    salt = secrets.token_bytes(SALT_BYTES)
    return "$".join(
        (SCHEME, str(COST), str(BLOCK_SIZE), str(LANES), _b64(salt), _b64(_scrypt(password, salt)))
    )


class Users:
    """Who is who, by the file.

    Args:
        path: of the file; None: there are no users.
        anonymous: role of whoever does not say who he is; NOBODY: he may not come in.

    Raises:
        ConfigError: the file cannot be used now.
    """

    def __init__(self, path: Path | None, anonymous: Role = Role.NOBODY) -> None:
        self._path, self._anonymous = path, anonymous
        self._users: tuple[User, ...] = ()
        self._seen: tuple[int, int, int] | None = None
        self._right: set[bytes] = set()
        self._secret = secrets.token_bytes(32)
        self._nobody = hashed(secrets.token_hex())
        if path is not None:
            self._users, self._seen = _read(path)

    def by_password(self, name: str, password: str) -> Identity | None:
        user = next((one for one in self._current() if one.name == name), None)
        stored = user.password if user is not None and user.password is not None else self._nobody
        if len(password) > PASSWORD_MAX_CHARS or not self._is_right(stored, password):
            return None
        return user.identity if user is not None else None

    def by_certificate(self, content: bytes) -> Identity | None:
        fingerprint = hashlib.sha256(content).hexdigest()
        for user in self._current():
            if user.certificate is not None and _plain(user.certificate) == fingerprint:
                complaint = complaint_of_dates(x509.load_der_x509_certificate(content), datetime.now(UTC))
                if complaint:
                    log.warning("opc ua: user's certificate", user=user.name, why=complaint)
                    return None
                return user.identity
        return None

    def anonymous(self) -> Identity | None:
        return Identity(ANONYMOUS, int(self._anonymous)) if self._anonymous is not Role.NOBODY else None

    def _current(self) -> tuple[User, ...]:
        if self._path is None:
            return ()
        try:
            if _mark(self._path) != self._seen:
                self._users, self._seen = _read(self._path)
                self._right.clear()
                log.info("opc ua: users read", file=str(self._path), users=len(self._users))
        except (ConfigError, OSError) as error:
            self._users, self._seen = (), None
            log.error("opc ua: nobody can log in", why=str(error))
        return self._users

    def _is_right(self, stored: str, password: str) -> bool:
        token = hmac.digest(self._secret, f"{stored}\0{password}".encode(errors="replace"), "sha256")
        if token in self._right:
            return True
        parts = _parts(stored)
        assert parts is not None
        cost, block_size, lanes, salt, wanted = parts
        if not hmac.compare_digest(_scrypt(password, salt, cost, block_size, lanes), wanted):
            return False
        if len(self._right) >= RIGHT_MAX:
            self._right.clear()
        self._right.add(token)
        return True


def _read(path: Path) -> tuple[tuple[User, ...], tuple[int, int, int]]:
    """Raises ConfigError."""
    try:
        mode, mark = path.stat().st_mode, _mark(path)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read: {error.strerror}; check the path and its permissions"
        ) from None
    if mode & stat.S_IROTH:
        raise ConfigError(f"{path}: everybody can read it; chmod 640 {path}")
    return load(path, UserFile).users, mark


def _mark(path: Path) -> tuple[int, int, int]:
    """Content or permissions have changed if this has."""
    status = os.stat(path)  # noqa: PTH116  one call for all
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size


def _scrypt(
    password: str, salt: bytes, cost: int = COST, block_size: int = BLOCK_SIZE, lanes: int = LANES
) -> bytes:
    return hashlib.scrypt(
        password.encode(errors="replace"), salt=salt, n=cost, r=block_size, p=lanes,
        maxmem=MEMORY_MAX_BYTES, dklen=HASH_BYTES,
    )  # fmt: skip


def _parts(stored: str) -> tuple[int, int, int, bytes, bytes] | None:
    """Cost, block size, lanes, salt, hash; None: no hash of ours, or one that would take for ever."""
    try:
        scheme, cost, block_size, lanes, salt, wanted = stored.split("$")
        parts = int(cost), int(block_size), int(lanes), base64.b64decode(salt), base64.b64decode(wanted)
    except ValueError:
        return None
    is_power = 1 < parts[0] <= COST_MAX and parts[0] & (parts[0] - 1) == 0
    usable = is_power and 0 < parts[1] <= 16 and 0 < parts[2] <= 4 and len(parts[4]) == HASH_BYTES
    return parts if scheme == SCHEME and usable else None


def _b64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _plain(fingerprint: str) -> str:
    return fingerprint.replace(":", "").lower()
