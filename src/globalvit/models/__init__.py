"""The networks: maths only, plain torch."""
