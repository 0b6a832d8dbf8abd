"""From a folder of CT or MRI scans to cross-validated masks and a report; one module per stage of the flow."""
