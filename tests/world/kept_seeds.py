"""Seeds that once broke a promise, with what was wrong. They stay, so that it stays mended."""

KEPT = {
    5: "power taken by a fault came back at once instead of at the agreed rate",
    129: "an agent that fell back and was re-leased by a repeated order stayed low for good",
    206: "the first order after an agent's restart raised its GPUs at once",
    223: "a meter that lies low was believed although the PDUs knew better",
    269: "cuts ordered to silent nodes counted as power set free",
    347: "base load from readings of two different moments, right after the start",
    20212: "late reports made readable GPUs look unreadable, and what was cut there went elsewhere at once",
    40092: "a repeated order that echoed a report nobody could use raised the GPUs of a node that had fallen back",
    30703: "an order decided without knowing of a restart raised the GPUs of the agent that restarted",
    2273: "an order on its way was counted as a cut again on every beat",
    2449: "a window that a wrong wall clock skipped was not obeyed when the clock was set right",
}
