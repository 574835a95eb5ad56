"""Log lines: one event and its numbers as keys, for people (coloured) or for machines (JSON).

Everything goes to stderr, which systemd hands to the journal. Lines of libraries that use `logging` take the
same road and look the same. Time stamps are UTC: a block and its grid operator compare logs.
"""

import logging
import sys
from typing import Final

import structlog

# Libraries whose INFO is a line per packet or per second,
CHATTY: Final = ("amqtt", "asyncio", "transitions")
# and those that log every fault of a device, with a stack: our adapters say it once, with a remedy.
TALKATIVE: Final = ("asyncua", "pymodbus")


def configure(level: str, *, json: bool) -> None:
    """Set up structlog and logging for this process; `level` as logging names it. Raises ValueError."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if json
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    final: list[structlog.typing.Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if json:
        final.append(structlog.processors.format_exc_info)
    out = logging.StreamHandler(sys.stderr)
    out.setFormatter(
        structlog.stdlib.ProcessorFormatter(processors=[*final, renderer], foreign_pre_chain=shared)
    )
    root = logging.getLogger()
    root.handlers[:] = [out]
    root.setLevel(level.upper())
    for name in CHATTY:
        logging.getLogger(name).setLevel(max(root.level, logging.WARNING))
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.CRITICAL)
