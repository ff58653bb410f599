"""Model families on one shared stack."""
