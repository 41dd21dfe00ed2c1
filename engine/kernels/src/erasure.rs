//! Products of byte vectors with matrices over GF(2^8): what erasure coding is made of.
//!
//! The field is GF(2)\[x\] / (x^8 + x^4 + x^3 + x^2 + 1), as in ISA-L. Matrices are made and inverted here (tiny and
//! rare); multiplying the data is ISA-L's work, with a plain twin that gives the same bytes.

#[cfg(test)]
mod tests;

/// Rows of a Cauchy matrix plus its columns can't exceed the elements of the field.
pub const ROWS_AND_COLUMNS_MAX: usize = 256;

/// Product in GF(2^8), bit by bit.
#[must_use]
pub fn multiply(a: u8, b: u8) -> u8 {
    let mut product = 0;
    let mut shifted = a;
    for bit in 0..8 {
        if b >> bit & 1 == 1 {
            product ^= shifted;
        }
        shifted = (shifted << 1) ^ if shifted & 0x80 != 0 { 0x1d } else { 0 };
    }
    product
}

/// `b` with `multiply(a, b) == 1`. Panics on zero, which has none.
fn invert(a: u8) -> u8 {
    assert_ne!(a, 0, "zero has no inverse");
    (0..6).fold(multiply(a, a), |power, _| multiply(multiply(power, power), multiply(a, a))) // a^254
}

/// A matrix over GF(2^8), row by row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matrix {
    columns: usize,
    cells: Vec<u8>,
}

impl Matrix {
    /// The generator of a systematic code: `data` rows of identity, then `parity` Cauchy rows 1 / (row XOR column).
    ///
    /// Any `data` of its rows are independent, so any `parity` losses can be rebuilt.
    #[must_use]
    pub fn cauchy_generator(data: usize, parity: usize) -> Matrix {
        assert!(data > 0 && data + parity <= ROWS_AND_COLUMNS_MAX, "{data} + {parity} fragments do not fit the field");
        let cell = |row: usize, column: usize| match row < data {
            true => u8::from(row == column),
            false => invert((row ^ column) as u8),
        };
        let cells = (0..data + parity).flat_map(|row| (0..data).map(move |column| cell(row, column))).collect();
        Matrix { columns: data, cells }
    }

    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.cells.len() / self.columns
    }

    /// Number of columns.
    #[must_use]
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// One row.
    #[must_use]
    pub fn row(&self, index: usize) -> &[u8] {
        &self.cells[index * self.columns..(index + 1) * self.columns]
    }

    /// The named rows, in that order.
    #[must_use]
    pub fn select(&self, rows: &[usize]) -> Matrix {
        let cells = rows.iter().flat_map(|row| self.row(*row).iter().copied()).collect();
        Matrix { columns: self.columns, cells }
    }

    /// The product of two matrices.
    #[must_use]
    pub fn times(&self, other: &Matrix) -> Matrix {
        assert_eq!(self.columns, other.rows(), "the matrices do not fit together");
        let dot = |row: usize, column: usize| {
            self.row(row).iter().enumerate().fold(0, |sum, (i, cell)| sum ^ multiply(*cell, other.row(i)[column]))
        };
        let cells = (0..self.rows()).flat_map(|row| (0..other.columns).map(move |column| (row, column)));
        Matrix { columns: other.columns, cells: cells.map(|(row, column)| dot(row, column)).collect() }
    }

    /// The inverse of a square matrix, `None` when it has none. Gauss-Jordan.
    #[must_use]
    pub fn inverse(&self) -> Option<Matrix> {
        let size = self.columns;
        assert_eq!(self.rows(), size, "only square matrices have inverses");
        let wide = |row: usize| {
            let identity = (0..size).map(move |column| u8::from(row == column));
            self.row(row).iter().copied().chain(identity).collect::<Vec<u8>>()
        };
        let mut work: Vec<Vec<u8>> = (0..size).map(wide).collect();
        for column in 0..size {
            let pivot = (column..size).find(|row| work[*row][column] != 0)?;
            work.swap(column, pivot);
            let scale = invert(work[column][column]);
            work[column].iter_mut().for_each(|cell| *cell = multiply(*cell, scale));
            let pivot_row = work[column].clone();
            for (_, row) in work.iter_mut().enumerate().filter(|(index, _)| *index != column) {
                let factor = row[column];
                row.iter_mut().zip(&pivot_row).for_each(|(cell, pivot)| *cell ^= multiply(factor, *pivot));
            }
        }
        Some(Matrix { columns: size, cells: work.iter().flat_map(|row| row[size..].iter().copied()).collect() })
    }
}

/// A matrix made ready for multiplying data with it.
pub struct Coder {
    matrix: Matrix,
    tables: Vec<u8>,
}

impl Coder {
    /// Expands the matrix into ISA-L's tables: 32 bytes for each cell.
    #[must_use]
    pub fn new(matrix: Matrix) -> Coder {
        let (rows, columns) = (matrix.rows(), matrix.columns());
        let mut tables = vec![0; 32 * rows * columns];
        // The wrapper passes `matrix.cells` (rows * columns bytes) and `tables` (32 bytes a cell) to ISA-L, which
        // reads and writes exactly that much.
        erasure_isa_l::ec::init_tables(columns as i32, rows as i32, &matrix.cells, &mut tables);
        Coder { matrix, tables }
    }

    /// The matrix.
    #[must_use]
    pub fn matrix(&self) -> &Matrix {
        &self.matrix
    }

    /// `outputs[r] = sum over c of matrix[r][c] * sources[c]`, byte by byte.
    ///
    /// One source for each column, one output for each row, all of one length below 2 GiB; panics otherwise: that is
    /// our own bug.
    pub fn apply(&self, sources: &[&[u8]], outputs: &mut [&mut [u8]]) {
        let len = self.check(sources, outputs);
        let pointers: Vec<*const u8> = sources.iter().map(|source| source.as_ptr()).collect();
        let mut output_pointers: Vec<*mut u8> = outputs.iter_mut().map(|output| output.as_mut_ptr()).collect();
        // The wrapper is a safe function over raw pointers, so the duty is ours: ISA-L reads `len` bytes behind each
        // of `columns` sources and writes `len` bytes behind each of `rows` outputs. `check` has compared counts and
        // lengths; the slices live, and the outputs are borrowed mutably, until this call returns.
        erasure_isa_l::ec::encode_data(
            len,
            self.matrix.columns() as i32,
            self.matrix.rows() as i32,
            &self.tables,
            &pointers,
            &mut output_pointers,
        );
    }

    /// [`Coder::apply`] with the plain twin: one table look-up a byte.
    pub fn apply_plain(&self, sources: &[&[u8]], outputs: &mut [&mut [u8]]) {
        self.check(sources, outputs);
        for (row, output) in outputs.iter_mut().enumerate() {
            output.fill(0);
            for (cell, source) in self.matrix.row(row).iter().zip(sources) {
                let products: [u8; 256] = std::array::from_fn(|byte| multiply(*cell, byte as u8));
                output.iter_mut().zip(*source).for_each(|(sum, byte)| *sum ^= products[usize::from(*byte)]);
            }
        }
    }

    /// Compares counts and lengths with the matrix; the common length.
    fn check(&self, sources: &[&[u8]], outputs: &[&mut [u8]]) -> i32 {
        assert_eq!(sources.len(), self.matrix.columns(), "one source for each column");
        assert_eq!(outputs.len(), self.matrix.rows(), "one output for each row");
        let len = sources[0].len();
        let alike = sources.iter().all(|source| source.len() == len) && outputs.iter().all(|out| out.len() == len);
        assert!(alike, "all sources and outputs have one length");
        i32::try_from(len).expect("ISA-L counts bytes in 31 bits")
    }
}
