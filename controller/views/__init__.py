"""What people see: checks, status, explanations, replays. Everything here reads, nothing here decides."""
