"""Facts on countries, places, airports and elements, as questions and as statements.

Records come from countryinfo, airportsdata and periodictable at run time; other question sets are
in `harness.scenarios.qa`.
"""
