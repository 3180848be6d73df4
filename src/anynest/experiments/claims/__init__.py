"""The paper's claims and the statistical tests that judge them."""
