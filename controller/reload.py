"""Whether a process may begin anew with its configuration as it stands: asked before it ends.

The file has to hold, and the files that it names have to be there and fit, for this user on this machine:
the same that `powerblock check` looks at. Whoever writes the folders must be able to, which `check` leaves
open: people run it who are somebody else. Whatever is wrong is said, and everything stays as it was.
"""

from pathlib import Path

import structlog

from controller.config import BlockConfig, ConfigError, load_config
from controller.store import StoreError, require_writable

log = structlog.get_logger(__name__)


def is_sound(path: Path, *, writes: bool = False) -> bool:
    """Whether it holds; if not, the log says why.

    Args:
        path: of the configuration.
        writes: this process writes `state_dir` and `run_dir`.
    """
    from controller.views import check, check_gateway

    try:
        config = load_config(path)
        found = check.unfit(config) if isinstance(config, BlockConfig) else check_gateway.unfit(config)
        wrong = list(found)
        if writes and not wrong:
            require_writable(state_dir=config.state_dir, run_dir=config.run_dir)
    except (ConfigError, StoreError) as error:
        wrong = str(error).splitlines()
    for sentence in wrong:
        log.error("not reloaded: everything stays as it was", why=sentence)
    if not wrong:
        log.info("reload", path=str(path))
    return not wrong
