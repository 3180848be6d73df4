"""The paper's tables and figures as data, and the sweeps that re-run them."""
