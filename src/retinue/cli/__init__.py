"""The command `retinue`: a manager's and an operator's hands on the controller, and on the laboratory."""
