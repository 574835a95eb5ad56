"""Whether a process may begin anew with its configuration as it stands: asked before it ends.

The file has to hold, and the files that it names have to be there and fit, for this user on this machine:
the same that `powerblock check` looks at. Whatever is wrong is said, and everything stays as it was.
"""

from pathlib import Path

import structlog

from controller.config import BlockConfig, ConfigError, load_config

log = structlog.get_logger(__name__)


def is_sound(path: Path) -> bool:
    """Whether it holds; if not, the log says why."""
    from controller.views import check, check_gateway

    try:
        config = load_config(path)
        found = check.unfit(config) if isinstance(config, BlockConfig) else check_gateway.unfit(config)
        wrong = list(found)
    except ConfigError as error:
        wrong = str(error).splitlines()
    for sentence in wrong:
        log.error("not reloaded: everything stays as it was", why=sentence)
    if not wrong:
        log.info("reload", path=str(path))
    return not wrong
