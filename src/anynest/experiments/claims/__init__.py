"""The paper's claims and the statistics that decide them."""
