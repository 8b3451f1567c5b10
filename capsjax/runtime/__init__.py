"""The machine below a program: devices, processes, terminal, files of programs."""
