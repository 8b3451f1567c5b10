"""The machine below a program: devices, processes, terminal, compilation cache."""
