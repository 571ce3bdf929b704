"""A bundle's shipped files measured on this machine: times, memory, and whether memory grows."""
