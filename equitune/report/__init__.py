"""What people see of a study: pictures, tables, the terminal. The only room that draws."""
