"""Writing files and folders so that nobody ever sees a part of one."""
