"""The controller: wires switches (C1), the manager's interface (I1) and the database to the pure core."""
