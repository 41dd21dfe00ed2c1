//! ISA-L and the plain twin give the same bytes; the matrices are ISA-L's own.

use super::*;

fn bytes(len: usize, seed: u32) -> Vec<u8> {
    (0..len as u32).map(|i| ((i ^ seed << 20).wrapping_mul(0x9e37_79b9) >> 23) as u8).collect()
}

#[test]
fn the_field_is_that_of_isa_l() {
    for a in 0..=255 {
        for b in 0..=255 {
            assert_eq!(multiply(a, b), erasure_isa_l::gf::mul(a, b), "{a} * {b}");
        }
        assert!(a == 0 || multiply(a, invert(a)) == 1, "1 / {a}");
    }
}

#[test]
fn the_generator_is_that_of_isa_l() {
    for (data, parity) in [(1, 1), (2, 1), (4, 2), (8, 3), (16, 16), (28, 4)] {
        let mut cells = vec![0; (data + parity) * data];
        erasure_isa_l::gf::gen_cauchy1_matrix(&mut cells, (data + parity) as i32, data as i32);
        assert_eq!(Matrix::cauchy_generator(data, parity).cells, cells, "{data}+{parity}");
    }
}

#[test]
fn a_matrix_times_its_inverse_is_the_identity() {
    for (data, parity, rows) in [(2, 1, vec![1, 2]), (4, 2, vec![1, 3, 4, 5]), (8, 3, vec![0, 8, 2, 9, 4, 10, 6, 7])] {
        let square = Matrix::cauchy_generator(data, parity).select(&rows);
        let product = square.times(&square.inverse().unwrap());
        assert_eq!(product, Matrix::cauchy_generator(data, 0), "rows {rows:?}");
    }
    assert_eq!(Matrix { columns: 2, cells: vec![1, 2, 1, 2] }.inverse(), None);
}

#[test]
fn isa_l_and_its_plain_twin_give_the_same_bytes() {
    for (data, parity) in [(1, 1), (1, 2), (2, 1), (4, 2), (8, 3), (10, 4), (16, 7)] {
        let generator = Matrix::cauchy_generator(data, parity);
        let coder = Coder::new(generator.select(&(data..data + parity).collect::<Vec<_>>()));
        for len in [1, 31, 32, 63, 64, 65, 127, 4096, 4097, 12_288] {
            let sources: Vec<Vec<u8>> = (0..data).map(|i| bytes(len, i as u32)).collect();
            let sources: Vec<&[u8]> = sources.iter().map(Vec::as_slice).collect();
            let (mut fast, mut plain) = (vec![vec![1; len]; parity], vec![vec![2; len]; parity]);
            coder.apply(&sources, &mut fast.iter_mut().map(Vec::as_mut_slice).collect::<Vec<_>>());
            coder.apply_plain(&sources, &mut plain.iter_mut().map(Vec::as_mut_slice).collect::<Vec<_>>());
            assert_eq!(fast, plain, "{data}+{parity}, {len} bytes");
        }
    }
}

#[test]
#[should_panic(expected = "one length")]
fn buffers_of_different_lengths_never_reach_isa_l() {
    let coder = Coder::new(Matrix::cauchy_generator(2, 1).select(&[2]));
    coder.apply(&[&[0; 64], &[0; 63]], &mut [&mut [0; 64]]);
}
