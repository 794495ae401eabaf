"""What every room needs: errors, logging, dtypes, output dataclasses, the compile cache."""
