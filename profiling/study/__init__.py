"""The studies, made again from records: tables, contradictions and figures."""
