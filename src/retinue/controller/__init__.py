"""The controller: wires switches (OpenFlow), the manager (REST) and the database to the pure core."""
